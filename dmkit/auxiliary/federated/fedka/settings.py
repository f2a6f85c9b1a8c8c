"""What makes one of the family of methods: FedAvg, DANN or matching or voting alone, FedKA."""

from __future__ import annotations

from dataclasses import dataclass

from ....errors import unknown_name

ALIGNMENTS, WEIGHTINGS = ("local", "global"), ("uniform", "samples")


@dataclass(frozen=True)
class Settings:
    """How clients and server train. The defaults are what was measured to work; the paper's own form is
    `adversarial=True, alignment="global"`, and FedAvg is `mmd_weight=0, voting=False`.

    Attributes:
        rounds: R.
        local_steps: I, steps of a client in a round.
        mmd_steps: I'; 0 has the matching in the same steps as the classification, otherwise a round has so
            many steps of matching alone after the others, with batches of their own, as the released code.
        adversarial: whether (2) is there; the network then needs `domains`.
        mmd_weight: w of (3); 0 leaves matching out.
        alignment: whose features of the site a client's are matched with: "local", its own, or "global",
            those of the last round's average, which do not move.
        gamma: γ of (4).
        voting: whether (6) is there.
        vote_threshold: τ, the share of clients that must agree.
        vote_steps: server's steps in a round.
        vote_learning_rate: of the server's Adam, which starts anew in each round.
        feedback: whether clients go on from G' and not from G. Their errors then confirm each other.
        weighting: w_k of (5), "uniform" or by "samples".

    Raises:
        ValueError: values out of range.
    """

    rounds: int
    local_steps: int = 20
    mmd_steps: int = 0
    adversarial: bool = False
    mmd_weight: float = 1.0
    alignment: str = "local"
    gamma: float = 5.0
    voting: bool = True
    vote_threshold: float = 0.0
    vote_steps: int = 20
    vote_learning_rate: float = 3e-3
    feedback: bool = False
    weighting: str = "uniform"

    def __post_init__(self) -> None:
        for name, least in {"rounds": 1, "local_steps": 1, "mmd_steps": 0, "vote_steps": 1}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}.")
        for name in ("mmd_weight", "gamma"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0.")
        if not 0 <= self.vote_threshold <= 1:
            raise ValueError(f"vote_threshold is {self.vote_threshold}; it must be in [0, 1].")
        if not self.vote_learning_rate > 0:
            raise ValueError(f"vote_learning_rate is {self.vote_learning_rate}; it must be positive.")
        for name, value, known in (
            ("alignment", self.alignment, ALIGNMENTS),
            ("weighting", self.weighting, WEIGHTINGS),
        ):
            if value not in known:
                raise unknown_name(name, value, known)
        if self.mmd_steps and not self.mmd_weight:
            raise ValueError("mmd_steps are steps of matching alone; they need a positive mmd_weight.")
        if self.feedback and not self.voting:
            raise ValueError("feedback=True sends back what voting makes; it needs voting=True.")

    @property
    def round_steps(self) -> int:
        """Steps of a client in a round, I + I'."""
        return self.local_steps + self.mmd_steps

    def progress(self, step: int) -> float:
        """p after so many steps of a client."""
        number, within = divmod(step, self.round_steps)
        return (number * self.local_steps + min(within, self.local_steps)) / (self.rounds * self.local_steps)
