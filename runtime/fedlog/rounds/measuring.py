"""Figures of one version as they come in, and what they say about stopping."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from fedlog.job.model import Mode, TestSet
from fedlog.rounds.actions import Figures
from fedlog.rounds.config import StopRule
from fedlog.rounds.standing import Judgement


@dataclass
class _Means:
    clients: int = 0
    examples: int = 0
    means: dict[str, float] = field(default_factory=dict)
    weights: dict[str, int] = field(default_factory=dict)

    def add(self, examples: int, metrics: Mapping[str, float]) -> None:
        """Running means, which stay within the range of what they are made of."""
        self.clients += 1
        self.examples += examples
        for name, value in metrics.items():
            weight = self.weights[name] = self.weights.get(name, 0) + examples
            mean = self.means.get(name, 0.0)
            self.means[name] = mean + (value - mean) * (examples / weight)

    def figures(self) -> Figures:
        return Figures(self.clients, self.examples, dict(self.means))


@dataclass
class VersionFigures:
    """The evaluations of one version. A client counts once per test set."""

    version: int
    digest: str
    reported: set[tuple[TestSet, str]] = field(default_factory=set)
    emitted: set[TestSet] = field(default_factory=set)
    _means: dict[TestSet, _Means] = field(default_factory=dict)

    def add(
        self, client: str, test_set: TestSet, examples: int, metrics: Mapping[str, float]
    ) -> bool:
        """Whether it counts; a second report of a client, or one that is too late, does not."""
        if (test_set, client) in self.reported or test_set in self.emitted:
            return False
        self.reported.add((test_set, client))
        self._means.setdefault(test_set, _Means()).add(examples, metrics)
        return True

    def has(self, client: str, test_set: TestSet) -> bool:
        return (test_set, client) in self.reported

    def settled(self, client: str, test_set: TestSet) -> bool:
        """Whether nothing more is to be had from this client on this test set."""
        return self.has(client, test_set) or test_set in self.emitted

    def take(self, test_set: TestSet) -> Figures | None:
        """The figures on this test set, the first time that they are asked for."""
        if test_set in self.emitted or test_set not in self._means:
            return None
        self.emitted.add(test_set)
        return self._means[test_set].figures()


@dataclass
class Judge:
    """Follows the decisive metric from version to version."""

    rule: StopRule
    best_value: float | None = None
    best_version: int | None = None
    without_better: int = 0

    @classmethod
    def at(cls, rule: StopRule, known: Judgement) -> Self:
        """As another judge left it."""
        return cls(rule, known.value, known.version, known.without_better)

    def judgement(self) -> Judgement:
        return Judgement(self.best_version, self.best_value, self.without_better)

    def judge(self, version: int, figures: Figures) -> tuple[bool, str | None]:
        """Whether the version is the best so far, and why to stop, if so."""
        value = figures.metrics.get(self.rule.metric)
        if value is None:
            return False, None
        best = self.best_value is None or self._better(value, self.best_value)
        if best:
            self.best_value, self.best_version, self.without_better = value, version, 0
        else:
            self.without_better += 1
        rule = self.rule
        if rule.value is not None and (value == rule.value or self._better(value, rule.value)):
            return best, f"{rule.metric} {value:.4g} has reached {rule.value:.4g}"
        if rule.patience is not None and self.without_better >= rule.patience:
            return best, f"{rule.metric} has not improved for {rule.patience} evaluations"
        return best, None

    def _better(self, value: float, than: float) -> bool:
        return value > than if self.rule.mode is Mode.MAX else value < than
