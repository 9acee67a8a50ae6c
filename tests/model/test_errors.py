"""Values in messages are short, whatever they are."""

from minibert.errors import brief


def test_a_long_value_is_shortened():
    nested = {"x" * 1000: {"y" * 1000: [1] * 1000}}
    for value in ("x" * 10**6, ["x" * 1000] * 1000, nested, 10**4000, 10**5000, -(10**5000), b"x" * 10**6):
        assert len(brief(value)) <= 80
        assert len(brief(value, 300)) <= 300


def test_a_deeply_nested_value_is_shortened():
    value = []
    for _ in range(100_000):
        value = [value]
    assert brief(value) == "[[[[[[[...]]]]]]]"
    while value:  # Python itself would free it by recursion
        value = value.pop()


def test_a_short_value_is_shown_as_python_writes_it():
    assert brief("a\nb") == "'a\\nb'"
    assert brief("a b", quoted=False) == "a b"
    assert brief(["a", 1, None]) == "['a', 1, None]"
    assert brief("a" * 50 + "b" * 50, 23, quoted=False) == "aaaaaaaaaa...bbbbbbbbbb"
