"""KFP components: each is its imports and one call into `watchrank`.

The image holds the project and kfp, so a task installs nothing. Data that outlives a run (events,
features, releases) lies in the workspace; an artifact of it says where and what it holds.
"""
