import pytest

from setokim.utils.registry import Registry


def test_implementations_are_found_in_their_order():
    registry = Registry("kind")
    assert registry.register("b")(max) is max
    registry.register("a")(min)
    assert list(registry) == ["b", "a"] and len(registry) == 2
    assert registry["b"] is max and "c" not in registry
    assert str(registry.unknown("c")) == "kind: expected one of b, a, got 'c'"


def test_a_name_has_one_implementation():
    registry = Registry("kind")
    registry.register("a")(min)
    # A module that is imported twice under two names registers twice.
    registry.register("a")(min)
    with pytest.raises(ValueError, match=r"^kind: expected a name that is free, got 'a'$"):
        registry.register("a")(max)
    assert registry["a"] is min
