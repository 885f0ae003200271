"""Whatever a file of settings or an override holds: it is a configuration, or one sentence tells why not."""

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from watchrank.config import Config
from watchrank.errors import InputError

SECTIONS = {
    name: list(Config.model_fields[name].annotation.model_fields) for name in sorted(Config.model_fields)
}
KEYS = sorted({key for keys in SECTIONS.values() for key in keys})

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.dates(),
    st.binary(max_size=3),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | SCALARS, inner, max_size=3)
    ),
    max_leaves=5,
)
ONE_SETTING = st.sampled_from(sorted(SECTIONS)).flatmap(
    lambda section: st.fixed_dictionaries(
        {section: st.dictionaries(st.sampled_from(SECTIONS[section]), SCALARS, max_size=2)}
    )
)
DUMPED = (ONE_SETTING | VALUES).map(lambda values: yaml.safe_dump(values, allow_unicode=True).encode())
PIECES = ["&a ", "*a", "!!float x", "!!int ", "!!timestamp ", "!!bool ", "!!binary é", "!!set ", "<<: ", "? "]
PIECES += ["- ", ": ", "\n", "[", "]", "{", "}", "'", '"', "---", "%YAML 9", "\t", "\0", "2026-13-45", "1:99"]
PIECES += ["training:\n  epochs: ", "split:\n  until: ", "!!python/object:os.system ", "9" * 5_000]
SPOILT = st.lists(st.sampled_from(PIECES), max_size=8).map("".join)

ANY = settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def check(load):
    """Load settings; a refusal is one sentence."""
    refused = None
    try:
        assert isinstance(load(), Config)
    except InputError as error:
        refused = str(error)
    assert refused is None or ("\n" not in refused and refused.endswith("."))


@ANY
@given(st.one_of(DUMPED, SPOILT.map(str.encode), st.binary(max_size=60)))
@example(b"[" * 5_000)
@example(b"{training: {epochs: &a [*a, *a]}}")
@example(b"training: {seed: " + b"9" * 5_000 + b"}")
def test_any_bytes_are_settings_or_refused_in_one_sentence(tmp_path, content):
    file = tmp_path / "settings.yaml"
    file.write_bytes(content)
    check(lambda: Config.load(file))


@ANY
@given(st.sampled_from(sorted(SECTIONS)), st.sampled_from(KEYS), SPOILT | SCALARS.map(repr))
@example("split", "until", "2026-13-45")
def test_any_override_is_taken_or_refused_in_one_sentence(section, key, text):
    check(lambda: Config.load(None, [f"{section}.{key}={text}"]))


@pytest.mark.parametrize("text", ["", "# nothing\n", "{}", "---\n"])
def test_a_file_of_nothing_is_the_defaults(tmp_path, text):
    (tmp_path / "settings.yaml").write_text(text)
    assert Config.load(tmp_path / "settings.yaml") == Config()


def test_a_key_of_the_base_may_be_replaced_where_it_is_merged(tmp_path):
    text = "training: &base {epochs: 2, seed: 5}\ncandidate_training: {<<: *base, epochs: 7}\n"
    (tmp_path / "settings.yaml").write_text(text)
    found = Config.load(tmp_path / "settings.yaml").candidate_training
    assert (found.epochs, found.seed) == (7, 5)


def test_many_faults_are_told_in_part(tmp_path):
    (tmp_path / "settings.yaml").write_text("".join(f"a{place}: 1\n" for place in range(8)))
    with pytest.raises(
        InputError, match=r"a4: Extra inputs are not permitted; and 3 more\. `watchrank"
    ) as told:
        Config.load(tmp_path / "settings.yaml")
    assert "a5" not in str(told.value)
