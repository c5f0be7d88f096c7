"""Key bindings of a review, the default ones and changed ones."""

import pytest

from pivotal_tokens.errors import RequestError
from pivotal_tokens.review.keys import DEFAULTS, key_map, key_name, keys_of


def test_every_action_has_a_key_and_no_key_does_two_things():
    keys = key_map()
    assert set(keys.values()) == set(DEFAULTS)
    assert keys["e"] == "evil" and keys["question_mark"] == "help"


def test_a_changed_action_loses_its_old_keys_and_the_others_keep_theirs():
    keys = key_map(["evil=f", "rest-safe=f5,space", "help=!"])
    assert keys["f"] == "evil" and "e" not in keys and keys["s"] == "safe"
    assert keys["f5"] == keys["space"] == "rest_safe"
    assert keys_of(keys, "help") == ["!"] and key_name("colon") == ":"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("wicked=f", "no action 'wicked'"),
        ("evil=s", "evil and safe"),
        ("evil=", "binds no key"),
        ("evil=T", "begins a list"),
        ("evil=\x1b", "cannot|can be typed"),
        ("evil=ff", "no key 'ff'"),  # was taken, and nothing was evil any more
        ("evil=F2", "no key 'F2'"),
    ],
)
def test_a_wrong_binding_is_one_line(change, message):
    with pytest.raises(RequestError, match=message) as told:
        key_map([change])
    assert "\n" not in str(told.value)
