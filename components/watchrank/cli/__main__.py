"""`watchrank` as a file to run: Spark's driver takes no module and no command."""

from watchrank.cli import main

main()
