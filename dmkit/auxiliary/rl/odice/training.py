"""Learns to act from recordings of Pendulum-v1 or of a folder, and rolls the policy out."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from ....errors import unknown_name
from ....training.arguments import TrainingArguments, hint
from ....training.trainer import Trainer
from .agent import Agent, evaluate, gymnasium, normalized_score
from .collecting import pendulum
from .data import Episodes, Transitions, as_it_is
from .networks import ActionValueNetwork, GaussianPolicy, ValueNetwork
from .tasks import IQLTask, ODICETask, PolicyTask

UPDATES = {"odice": "orthogonal", "sdice": "semi", "true": "true"}
LEARNERS = (*UPDATES, "iql", "bc")


@dataclass
class Arguments:
    """O-DICE on recorded episodes."""

    data: str = field(default="pendulum", metadata=hint("pendulum (recorded here), or a folder of episodes."))
    data_seed: int = field(default=0, metadata=hint("Of the recording of pendulum."))
    episodes: int = field(default=80, metadata=hint("Of pendulum."))
    environment: str | None = field(
        default=None, metadata=hint("A name of gymnasium to roll out in; the recordings' own by default.")
    )
    learner: str = field(default="odice", metadata=hint("odice, sdice (semi-gradient), true, iql or bc."))
    lam: float = field(default=0.5, metadata=hint("λ: the weight of the residuals' conjugate, in (0, 1)."))
    eta: float = field(default=1.0, metadata=hint("η: the weight of the backward loss."))
    discount: float = field(default=0.99, metadata=hint("Of later rewards."))
    divergence: str = field(default="pearson_chi2", metadata=hint("pearson_chi2 or kl."))
    weight: str = field(default="omega", metadata=hint("Of actions: omega, or relu as in the authors' code."))
    max_weight: float = field(default=100.0, metadata=hint("Larger weights are cut off."))
    tau: float = field(default=0.005, metadata=hint("Share by which targets follow."))
    expectile: float = field(default=0.7, metadata=hint("Of iql."))
    temperature: float = field(default=3.0, metadata=hint("Of iql."))
    value_hidden: list[int] = field(default_factory=lambda: [256, 256], metadata=hint("Layers of V and Q."))
    policy_hidden: list[int] = field(default_factory=lambda: [1024, 1024], metadata=hint("Layers of π."))
    layer_norm: bool = field(default=True, metadata=hint("In V."))
    twin: bool = field(default=True, metadata=hint("Two networks for V; a target is the lower."))
    tanh_mean: bool = field(default=False, metadata=hint("Squashes the policy's mean."))
    policy_decay: float = field(default=0.0, metadata=hint("Weight decay of the policy."))
    normalize_states: bool = field(default=True, metadata=hint("To mean 0 and deviation 1."))
    return_range: float = field(
        default=1000.0, metadata=hint("Rewards are scaled so that returns span it; 0 leaves them.")
    )
    evaluation_episodes: int = field(default=20, metadata=hint("Rolled out at the end; 0: none."))

    def __post_init__(self) -> None:
        if self.learner not in LEARNERS:
            raise unknown_name("--learner", self.learner, LEARNERS)


def build_task(arguments: Arguments, observation_dim: int, action_dim: int) -> PolicyTask:
    """The task that the arguments name, with fresh networks."""
    policy = GaussianPolicy(observation_dim, action_dim, arguments.policy_hidden, arguments.tanh_mean)
    common: dict[str, Any] = {"policy_decay": arguments.policy_decay}
    if arguments.learner == "bc":
        return PolicyTask(policy, **common)
    common |= {"discount": arguments.discount, "max_weight": arguments.max_weight, "tau": arguments.tau}
    members = 2 if arguments.twin and arguments.learner != "iql" else 1
    value = ValueNetwork(observation_dim, arguments.value_hidden, arguments.layer_norm, members)
    if arguments.learner == "iql":
        critic = ActionValueNetwork(observation_dim, action_dim, arguments.value_hidden)
        scales = {"expectile": arguments.expectile, "temperature": arguments.temperature}
        return IQLTask(value, critic, policy, **scales, **common)
    return ODICETask(
        value,
        policy,
        lam=arguments.lam,
        eta=arguments.eta,
        divergence=arguments.divergence,
        update=UPDATES[arguments.learner],
        weight=arguments.weight,
        **common,
    )


def prepare(arguments: Arguments, episodes: Episodes) -> tuple[Transitions, torch.Tensor, torch.Tensor]:
    """The transitions as they are trained on, and the box of actions.

    Raises:
        ValueError: recordings that do not say what box their actions are from.
    """
    transitions = episodes.transitions()
    if not {"low", "high"} <= set(episodes.about):
        raise ValueError("The recordings do not say from what box their actions are (about: low, high).")
    low, high = (torch.tensor(episodes.about[end]) for end in ("low", "high"))
    transitions.scale_actions(low, high)
    if arguments.normalize_states:
        transitions.normalize_states()
    if arguments.return_range:
        transitions.scale_rewards(arguments.return_range)
    return transitions, low, high


def train(episodes: Episodes, arguments: Arguments, training: TrainingArguments) -> tuple[Agent, PolicyTask]:
    """Trains on recordings; the agent is also in `agent` in the output folder."""
    transitions, low, high = prepare(arguments, episodes)
    sizes = (transitions.columns[name].shape[1] for name in ("observations", "actions"))
    torch.manual_seed(training.seed)
    task = build_task(arguments, *sizes)
    trainer = Trainer(task, transitions, training, rule=task.rule(), collate_fn=as_it_is)
    trainer.train()
    with trainer.averaged() as modules:
        # A copy: with averaged weights, the module gets its own back.
        policy: Any = copy.deepcopy(modules["policy"]).cpu()
    agent = Agent(policy.eval(), transitions.mean, transitions.std, low, high, asdict(arguments))
    if PartialState().is_main_process:
        agent.save(Path(training.output_dir) / "agent")
    return agent, task


def run(arguments: Arguments, training: TrainingArguments) -> dict[str, Any]:
    """Trains and rolls out; returns the mean and the lowest return, and the normalised score where the
    recordings have what it is measured against.
    """
    if arguments.data == "pendulum":
        episodes = pendulum(arguments.episodes, arguments.data_seed)
    else:
        episodes = Episodes.load(arguments.data)
    agent, _ = train(episodes, arguments, training)
    figures: dict[str, Any] = {"recorded_return": round(float(episodes.returns().mean()), 2)}
    name = arguments.environment or episodes.about.get("environment")
    if name and arguments.evaluation_episodes:
        library = gymnasium()
        returns = evaluate(agent.act, lambda: library.make(name), arguments.evaluation_episodes, seed=20_000)
        figures |= {"return": round(float(returns.mean()), 2), "worst": round(float(returns.min()), 2)}
        if "reference_return" in episodes.about:
            ends = (episodes.about["random_return"], episodes.about["reference_return"])
            figures["score"] = round(normalized_score(returns, *ends), 2)
    return figures
