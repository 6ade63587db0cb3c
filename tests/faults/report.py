"""What one kind of torture did: how often each thing, and what went wrong."""

import json
from collections import Counter
from dataclasses import dataclass, field

MOST_MESSAGES = 25


@dataclass
class Report:
    """``done``: how many of what the kind counts; ``details``: of what sort they were."""

    done: int = 0
    details: Counter[str] = field(default_factory=Counter)
    failures: int = 0
    messages: list[str] = field(default_factory=list)
    skipped: str = ""

    def count(self, what: str = "", n: int = 1) -> None:
        self.done += n
        if what:
            self.details[what] += n

    def note(self, what: str, n: int = 1) -> None:
        self.details[what] += n

    def fail(self, message: str) -> None:
        self.failures += 1
        if len(self.messages) < MOST_MESSAGES:
            self.messages.append(message.encode("utf-8", "backslashreplace").decode())

    def to_json(self) -> str:
        return json.dumps(vars(self))

    @staticmethod
    def from_json(text: str) -> "Report":
        fields = json.loads(text)
        return Report(**{**fields, "details": Counter(fields["details"])})
