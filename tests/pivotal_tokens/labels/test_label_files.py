"""Files of labels: the same out and in, harmless in a spreadsheet, nothing lost or replaced."""

import csv
import json
from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sample_labels import event

from pivotal_tokens.errors import RequestError
from pivotal_tokens.labels import FIELDS, import_labels, label_records, read_records, write_records
from pivotal_tokens.labels.dump import read_dump, write_dump
from pivotal_tokens.labels.formats import csv_text
from pivotal_tokens.schema import LabelEvent, Prompt
from pivotal_tokens.store import Store
from pivotal_tokens.table_files import BadRow

PAIR = "pair-1"
FORMATS = ("jsonl", "csv", "parquet")


@pytest.fixture
def labelled(store, prompt, pair):
    store.results.put_next_tokens(prompt.prompt_id, PAIR, pair.base, pair.merged)
    store.labels.add(
        [
            event(prompt.prompt_id, 1, "safe"),
            event(prompt.prompt_id, 2, "safe", reason="=HYPERLINK(1)"),
            event(prompt.prompt_id, 2, "evil", from_label="safe", judge_visible=True),
            event(prompt.prompt_id, 3, "unsure", author="bob"),
        ]
    )
    return prompt


def other_store(tmp_path, name="other.sqlite"):
    return Store.open(tmp_path / name, create=True)


def standing(store, prompt):
    return {(e.token_id, e.author): e.to_label for e in store.labels.events(prompt.prompt_id)}


@pytest.mark.parametrize("kind", FORMATS)
def test_an_export_brings_every_event_into_an_empty_store(store, labelled, tmp_path, kind):
    path = tmp_path / f"labels.{kind}"
    write_records(path, label_records(store), FIELDS)
    with other_store(tmp_path) as other:
        report = import_labels(other, read_records(path), source=path.name)
        assert (report.added, report.prompts, report.conflicts) == (4, 1, 0)
        assert not report.left_out
        known = store.labels.events(labelled.prompt_id)
        assert other.labels.events(labelled.prompt_id) == known
        again = import_labels(other, read_records(path), source=path.name)
        assert (again.added, again.duplicates) == (0, 4)
        assert next(iter(label_records(other)))["prompt_text"] == labelled.text


@pytest.mark.parametrize("kind", FORMATS)
def test_tokens_left_on_purpose_and_taken_back_come_along(store, labelled, tmp_path, kind):
    """An export with one left token was refused whole: 'no label; one of evil, safe, unsure'."""
    store.labels.add(
        [
            event(labelled.prompt_id, 1, None, author="cyd", left=True),
            event(labelled.prompt_id, 1, None, author="cyd", was_left=True, undoes="a batch"),
        ]
    )
    path, whole = tmp_path / f"labels.{kind}", tmp_path / "all.jsonl"
    write_records(path, label_records(store), FIELDS)
    write_dump(store, whole)
    known = store.labels.events(labelled.prompt_id)
    with other_store(tmp_path) as other:
        assert import_labels(other, read_records(path), source=path.name).added == 6
        assert other.labels.events(labelled.prompt_id) == known
    with other_store(tmp_path, "whole.sqlite") as other:
        assert read_dump(other, whole).added == 6
        assert other.labels.events(labelled.prompt_id) == known


def test_a_contradiction_is_queued_and_replaces_nothing(store, labelled, tmp_path):
    store.assignments.add(labelled.prompt_id, PAIR, "flagged")
    item = store.queue.take("ada", 60)
    store.queue.settle(item, "done", item.fence)
    records = [
        ("x, line 1", {"prompt_text": labelled.text, "token_id": 1, "label": "evil"}),
        ("x, line 2", {"prompt_text": labelled.text, "token_id": 3, "label": "unsure"}),
    ]
    report = import_labels(store, records, source="x.csv", author="eve")
    assert (report.added, report.conflicts) == (1, 1)
    assert store.labels.of(labelled.prompt_id).by_token == {1: "safe", 2: "evil", 3: "unsure"}
    (conflict,) = store.labels.conflicts()
    assert (conflict.against, conflict.by, conflict.source) == ("safe", "ada", "x.csv")
    (waiting,) = store.queue.items()
    assert waiting.state == "pending" and "conflict" in waiting.reason
    assert import_labels(store, records, source="x.csv", author="eve").conflicts == 0
    item = store.queue.take("ada", 60)
    store.queue.settle(item, "done", item.fence)
    assert store.labels.conflicts() == ()


def test_a_contradiction_leaves_an_item_with_who_holds_it(store, labelled):
    store.assignments.add(labelled.prompt_id, PAIR, "flagged")
    held = store.queue.take("ada", 60)
    records = [("x", {"prompt_text": labelled.text, "token_id": 1, "label": "evil"})]
    assert import_labels(store, records, source="x", author="eve").conflicts == 1
    (item,) = store.queue.items()
    assert (item.state, item.fence) == ("leased", held.fence)


def test_the_same_author_without_history_does_not_replace_the_label_here(store, labelled):
    records = [("x", {"prompt_text": labelled.text, "token_id": 1, "label": "evil"})]
    report = import_labels(store, records, source="x", author="ada")
    assert (report.added, report.conflicts) == (0, 1)
    goes_on = [{"label": "evil", "from_label": "safe", "event_id": "e1"}]
    goes_on[0] |= {"prompt_text": labelled.text, "token_id": 1, "author": "ada"}
    assert import_labels(store, [("y", goes_on[0])], source="y").added == 1


def test_bare_statements_are_dropped_when_they_stand_already(store, labelled):
    record = {"prompt_id": labelled.prompt_id, "token_text": " w1", "label": "safe"}
    report = import_labels(store, [("x", record)], source="x", author="ada")
    assert (report.added, report.duplicates) == (0, 1)


def test_what_cannot_be_used_is_named_and_the_rest_kept(store, labelled):
    at = {"prompt_text": labelled.text, "author": "cy"}
    records = [
        ("f, line 1", at | {"token_text": " nowhere", "label": "evil"}),
        ("f, line 2", {"prompt_id": "0" * 12, "author": "cy", "token_id": 1, "label": "evil"}),
        ("f, line 3", at | {"token_id": 3, "label": "wicked"}),
        ("f, line 4", at | {"token_text": " w3", "label": "unsure"}),
    ]
    report = import_labels(store, records, source="f")
    assert report.added == 1 and standing(store, labelled)[3, "cy"] == "unsure"
    assert {one.where[-1] for one in report.left_out} == {"1", "2", "3"}
    found = import_labels(store, records[:1], source="f", token_of=lambda text: 77)
    assert found.added == 1


def test_a_record_that_cannot_be_kept_is_named_and_the_others_go_in(store, labelled):
    """One such record refused the file, or was a traceback after half of it was written."""
    at = {"prompt_text": labelled.text, "author": "cy", "label": "unsure", "token_id": 3}
    wrong = [
        ({"prompt_id": "0" * 12}, "is not the text's"),
        ({"token_id": True}, "token_id is no number: True"),
        ({"token_id": 1.5}, "token_id is no number: 1.5"),
        ({"token_id": float("nan")}, "no token_id"),
        ({"token_id": -1}, "token_id -1 is no token's"),
        ({"token_id": 2**31}, "is no token's"),
        ({"token_id": 99}, "token 99 is in no list"),
        ({"token_text": " other"}, "token 3 is ' w3' here, not ' other'"),
        ({"token_id": None, "token_text": 7}, "token_text is no text"),
        ({"author": "a" * 257}, "author is longer than 256"),
        ({"author": "a\0"}, "author has a NUL"),
        ({"author": "\ud83d"}, "not valid Unicode"),
        ({"reason": "\ud83d"}, "not valid Unicode"),
        ({"prompt_name": "\ud83d"}, "not valid Unicode"),
        ({"prompt_category": "\0"}, "category has a NUL"),
        ({"prompt_text": "\ud83d"}, "not valid Unicode"),
        ({"prompt_text": 7}, "prompt_text is no text"),
        ({"event_id": "e" * 65}, "event_id is longer"),
        ({"at": "yesterday"}, "at: "),
        ({"label": "wicked"}, "to_label: "),
        ({"label": None}, "no label"),
        ({"author": None}, "no author"),
    ]
    records = [(f"f, line {n}", at | more) for n, (more, _) in enumerate(wrong, start=1)]
    records.insert(5, ("f, line 99", BadRow("not JSON (cut off)")))
    records.insert(9, ("f, line 100", at | {"token_id": 3.0}))
    report = import_labels(store, records, source="f")
    said = {one.where: one.why for one in report.left_out}
    for n, (_, why) in enumerate(wrong, start=1):
        assert why in said[f"f, line {n}"]
    assert said["f, line 99"] == "not JSON (cut off)"
    assert (report.records, report.added, len(said)) == (len(records), 1, len(wrong) + 1)
    assert report.prompts == 0 and standing(store, labelled)[3, "cy"] == "unsure"
    report.model_dump_json()


def test_the_event_id_of_another_label_is_no_duplicate(store, labelled):
    """It counted as known, or as added, and was in the store neither way."""
    other = Prompt.of("another prompt")
    store.prompts.add(other)
    first = {"prompt_id": labelled.prompt_id, "token_id": 3, "label": "unsure", "author": "cy"}
    first |= {"event_id": "e1"}
    records = [
        ("x, 1", first),
        ("x, 2", first),
        ("x, 3", first | {"label": "safe"}),
        ("x, 4", first | {"prompt_id": other.prompt_id}),
    ]
    report = import_labels(store, records, source="x")
    assert (report.added, report.duplicates, report.conflicts) == (1, 1, 0)
    assert [one.where for one in report.left_out] == ["x, 3", "x, 4"]
    assert all("'e1' is another label's" in one.why for one in report.left_out)
    assert store.labels.events(other.prompt_id) == ()


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        # Closed at the end of a later row: as CSV it is sound, and the rows between are lost.
        (['ID,1,evil,ada,"said eat', "ID,2,evil,ada,x", 'ID,3,safe,ada,y"'], 4),
        (['ID,1,evil,ada,"said eat', "ID,2,evil,bob,x", '"', "ID,3,safe,ada,y"], 4),
    ],
)
def test_rows_that_a_late_quote_has_swallowed_are_not_lost_in_silence(
    store, labelled, tmp_path, rows, line
):
    path = tmp_path / "late.csv"
    lines = ["prompt_id,token_id,label,author,reason", *rows]
    path.write_text("\n".join(lines).replace("ID", labelled.prompt_id) + "\n")
    report = import_labels(store, read_records(path), source=path.name)
    assert report.left_out[0].where == f"late.csv, line {line}"
    assert "rows stand within its reason" in report.left_out[0].why


def test_a_reason_of_several_lines_with_commas_is_a_reason(store, labelled, tmp_path):
    path = tmp_path / "long.csv"
    reason = "first, it burns\nthen, as said, it burns, and burns, again\n1, 2, 3, 4, 5"
    header = "prompt_id,token_id,label,author,reason"
    path.write_text(f'{header}\n{labelled.prompt_id},3,unsure,cy,"{reason}"\n')
    report = import_labels(store, read_records(path), source=path.name)
    assert report.added == 1 and not report.left_out


def test_a_tree_or_dump_with_a_bad_record_brings_the_rest(store, labelled, tmp_path):
    path = tmp_path / "all.jsonl"
    write_dump(store, path)
    lines = path.read_text(encoding="utf-8").splitlines()
    label = next(line for line in lines if '"kind": "label"' in line)
    bad = [label.replace('"ada"', '"\\ud83d"'), label[:-20], label.replace("human", "alien")]
    path.write_text("\n".join([*bad, *lines]) + "\n", encoding="utf-8")
    with other_store(tmp_path) as other:
        report = read_dump(other, path)
        assert other.labels.events(labelled.prompt_id) == store.labels.events(labelled.prompt_id)
    assert report.added == 4 and len(report.left_out) == 3
    assert report.records == report.added + report.duplicates + report.conflicts + 3


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"token_id": 1, "label": "evil", "to_label": "evil", "author": "a"}, "label and to_label"),
        ({"token_id": 1, "label": "evil", "author": "a"}, "no prompt_text"),
        ({"prompt_text": "x", "label": "evil", "author": "a"}, "no token_id"),
        ({"prompt_text": "x", "token_id": 1, "author": "a"}, "no label"),
        ({"prompt_text": "x", "token_id": 1, "label": "evil"}, "no author"),
        ({"prompt_text": "x", "colour": 1}, "colour"),
    ],
)
def test_a_file_of_another_shape_is_refused_before_anything_is_written(store, record, message):
    with pytest.raises(RequestError, match=message):
        import_labels(store, [("file, line 1", record)], source="file")
    assert store.prompts.all() == ()


def test_a_file_of_another_format_is_one_line(tmp_path):
    for name, content in (
        ("a.csv", b'author,reason\nada,"said\n'),
        ("b.csv", b"author,author\n"),
        ("e.parquet", b"PAR"),
        ("f.jsonl", b"\xff\xfe"),
        ("g.txt", b""),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(RequestError) as told:
            list(read_records(path))
        assert name in str(told.value) and "\n" not in str(told.value)
    with pytest.raises(RequestError, match="no file"):
        list(read_records(tmp_path / "absent.csv"))


texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
texts = texts | st.sampled_from(
    ["", "'", "''=", "=1+1", " -x", "\t", "\r\n", "@a", "\x00", '"', ","]
)
maybe = st.none() | texts
moments = st.datetimes(
    min_value=datetime(2000, 1, 1), max_value=datetime(2100, 1, 1), timezones=st.just(UTC)
)


@st.composite
def records(draw):
    text = draw(texts.filter(bool))
    prompt = Prompt.of(text, name=draw(maybe), category=draw(maybe), generator=draw(texts))
    made = LabelEvent(
        prompt_id=prompt.prompt_id,
        token_id=draw(st.integers(0, 2**31)),
        from_label=draw(st.sampled_from(["evil", "safe", "unsure", None])),
        to_label=draw(st.sampled_from(["evil", "safe", "unsure"])),
        author=draw(texts.filter(bool)),
        author_kind=draw(st.sampled_from(["human", "judge"])),
        judge_visible=draw(st.booleans()),
        reason=draw(maybe),
        at=draw(moments),
    )
    from pivotal_tokens.labels.records import record_of

    return record_of(made, prompt, draw(maybe))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(given_records=st.lists(records(), max_size=4))
@pytest.mark.parametrize("kind", FORMATS)
def test_any_text_survives_every_format(tmp_path, kind, given_records):
    path = tmp_path / f"labels.{kind}"
    write_records(path, given_records, FIELDS)
    assert [record for _, record in read_records(path)] == given_records


@settings(max_examples=200, deadline=None)
@given(text=texts | st.text("=+-@\t\r\n' ＝＋", min_size=1, max_size=4))
def test_no_cell_of_a_csv_is_a_formula(text):
    (cells,) = list(csv.reader(csv_text([{"reason": text}], ["reason"]).splitlines(True)))[1:] or [
        [""]
    ]
    assert not cells[0].lstrip(" ").startswith(("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋"))


def test_jsonl_lines_hold_one_object_each(store, labelled, tmp_path):
    path = tmp_path / "labels.jsonl"
    write_records(path, label_records(store), FIELDS)
    lines = path.read_text(encoding="utf-8").split("\n")
    assert lines.pop() == "" and [list(json.loads(line)) for line in lines] == [list(FIELDS)] * 4
