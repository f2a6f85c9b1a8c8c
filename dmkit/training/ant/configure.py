"""The flags of ANT, and from them a sampler and a rule."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import refuse_idle, unknown_name
from ..arguments import hint
from ..rules import RULES, GradientRule, build_rule, sum_losses
from .affinity import Affinity
from .clustering import TimestepClusters, affinity_cost, best_intervals, log_snr, snr_cost, timestep_cost
from .sampling import WEIGHTINGS, ClusterTimestepSampler

COSTS = ("timestep", "snr", "affinity")


@dataclass
class AntArguments:
    """Clusters of timesteps and how their losses are balanced (ANT); off by default."""

    ant_clusters: int = field(default=0, metadata=hint("Clusters of timesteps; 5 in the paper, 0: no ANT."))
    ant_cost: str = field(
        default="timestep", metadata=hint("What clusters are alike in: timestep, snr or affinity.")
    )
    ant_affinity: str | None = field(
        default=None, metadata=hint("The affinity that scripts/measure_affinity.py wrote, for its cost.")
    )
    ant_weighting: str = field(
        default="equal", metadata=hint("equal: clusters count alike; size: by their timesteps.")
    )
    ant_min_size: int = field(default=1, metadata=hint("Timesteps in a cluster at least."))
    mtl: str = field(default="sum", metadata=hint("Gradient rule: sum, uw, pcgrad or nash."))
    mtl_update_every: int | None = field(
        default=None, metadata=hint("Steps between two weighings: by default 1 for pcgrad, 25 for nash.")
    )
    mtl_learning_rate: float = field(default=0.025, metadata=hint("Learning rate of uw's weights."))

    def __post_init__(self) -> None:
        for name, known in (
            ("ant_cost", COSTS),
            ("ant_weighting", WEIGHTINGS),
            ("mtl", RULES),
        ):
            if (value := getattr(self, name)) not in known:
                raise unknown_name(f"--{name}", value, known)
        if self.ant_clusters < 0:
            raise ValueError(f"--ant_clusters is {self.ant_clusters}; it must be at least 0.")
        if self.mtl != "sum" and not self.ant_clusters:
            raise ValueError(f"--mtl {self.mtl} balances clusters: give --ant_clusters, for example 5.")
        if not self.ant_clusters:
            refuse_idle(self, ("ant_cost", "ant_affinity", "ant_weighting", "ant_min_size"), "--ant_clusters")
        if self.mtl != "uw":
            refuse_idle(self, ("mtl_learning_rate",), "--mtl uw")
        if (self.ant_cost == "affinity") != (self.ant_affinity is not None):
            raise ValueError("--ant_cost affinity and --ant_affinity FILE go together.")
        if self.mtl_update_every is not None and self.mtl not in ("pcgrad", "nash"):
            raise ValueError(f"--mtl_update_every is for pcgrad and nash, not for {self.mtl}.")


def timestep_clusters(arguments: AntArguments, scheduler: Any) -> TimestepClusters:
    """The clusters that the flags ask for.

    Args:
        arguments: with `ant_clusters` of at least 1.
        scheduler: the noise schedule; of `config.num_train_timesteps` steps.

    Raises:
        ValueError: clusters that do not fit the schedule, or an affinity of another number of timesteps.
        FileFormatError: a file that is no affinity.
    """
    total = scheduler.config.num_train_timesteps
    if arguments.ant_cost == "timestep":
        cost = timestep_cost(total)
    elif arguments.ant_cost == "snr":
        cost = snr_cost(log_snr(scheduler))
    else:
        affinity = Affinity.load(Path(str(arguments.ant_affinity)))
        if affinity.num_timesteps != total:
            raise ValueError(
                f"{arguments.ant_affinity} is of {affinity.num_timesteps} timesteps, the schedule of {total}."
            )
        cost = affinity_cost(affinity.full())
    return best_intervals(cost, arguments.ant_clusters, min_size=arguments.ant_min_size)


def timestep_sampler(arguments: AntArguments, scheduler: Any) -> ClusterTimestepSampler | None:
    """The sampler that the flags ask for; None without clusters."""
    if not arguments.ant_clusters:
        return None
    clusters = timestep_clusters(arguments, scheduler)
    return ClusterTimestepSampler(clusters, weighting=arguments.ant_weighting)


def gradient_rule(arguments: AntArguments) -> GradientRule:
    """The rule that the flags ask for; the sum without clusters."""
    if not arguments.ant_clusters:
        return sum_losses
    return build_rule(
        arguments.mtl,
        arguments.ant_clusters,
        update_every=arguments.mtl_update_every,
        learning_rate=arguments.mtl_learning_rate,
    )
