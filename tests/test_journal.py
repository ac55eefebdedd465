from spool.broker import MAX_LINES, MAX_LOG
from spool.executor.journal import Journal, Line, Part


def line(text: str) -> Line:
    return (1, "INFO", "shop", text)


def texts(part: Part) -> list[str]:
    return [each[3] for each in part.lines]


def test_what_is_said_is_taken_once_it_was_sent():
    journal = Journal()
    journal.write(line("a"))
    journal.report((1, 2, "half", 5))
    part = journal.unsent()
    assert (part.first, texts(part), part.step, part.report) == (0, ["a"], 1, (1, 2, "half", 5))
    assert journal.unsent() == part
    journal.write(line("b"))
    journal.sent(part)
    assert journal.waiting
    assert journal.unsent() == Part(1, [line("b")], 1, None)
    journal.sent(journal.unsent())
    assert not journal.waiting


def test_a_report_that_comes_meanwhile_is_not_forgotten():
    journal = Journal()
    journal.report((1, None, "", 5))
    part = journal.unsent()
    journal.report((2, None, "", 6))
    journal.sent(part)
    assert (journal.unsent().step, journal.unsent().report) == (2, (2, None, "", 6))


def test_somebody_is_told_once_until_it_was_taken():
    journal = Journal()
    assert journal.write(line("a"))
    assert not journal.write(line("b"))
    assert not journal.report((1, None, "", 5))
    journal.unsent()
    assert journal.report((1, None, "", 5))


def test_the_last_lines_are_kept_and_numbered():
    journal = Journal()
    for number in range(1000):
        journal.write(line(str(number)))
    part = journal.unsent()
    assert (part.first, len(part.lines)) == (1000 - MAX_LINES, MAX_LINES)
    assert texts(part)[-1] == "999"


def test_the_last_bytes_are_kept():
    journal = Journal()
    for number in range(10):
        journal.write(line(str(number) * (MAX_LOG // 4)))
    part = journal.unsent()
    assert (part.first, [text[0] for text in texts(part)]) == (6, ["6", "7", "8", "9"])
    journal.sent(part)
    journal.write(line("x" * MAX_LOG))
    assert len(journal.unsent().lines) == 1


def test_what_was_sent_while_lines_were_dropped():
    journal = Journal()
    journal.write(line("a"))
    part = journal.unsent()
    for number in range(MAX_LINES + 5):
        journal.write(line(str(number)))
    journal.sent(part)
    assert (journal.unsent().first, len(journal.unsent().lines)) == (6, MAX_LINES)


def test_parts_of_another_journal_are_merged():
    journal = Journal()
    journal.merge(Part(0, [line("a"), line("b")], 1, (1, None, "", 5)))
    journal.merge(Part(2, [line("c")], 1, None))
    part = journal.unsent()
    assert (part.first, texts(part), part.step, part.report) == (0, ["a", "b", "c"], 1, (1, None, "", 5))


def test_a_gap_in_another_journal_stays_one():
    journal = Journal()
    journal.merge(Part(0, [line("a")], 0, None))
    journal.merge(Part(50, [line("b")], 0, None))
    assert journal.unsent() == Part(50, [line("b")], 0, None)
