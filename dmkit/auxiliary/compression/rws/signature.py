"""Robust weight signatures: extraction, arithmetic, files.

A file is one `signature.safetensors`: for each tensor its float32 values or its packed codes (uint8), and in
the header, as JSON under `dmkit_rws`, a format version, what `SignatureMetadata` has, and shape, levels,
scheme and bounds of each coded tensor.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ...._files import atomic_file
from ....errors import FileFormatError
from .._bits import packed_size
from . import quantizing
from .layers import Layers, architecture, fingerprint, head_of, norm_tensors, select
from .quantizing import Codes, bits_of, quantize

FORMAT = 1
FILE = "signature.safetensors"
HEADER_KEY = "dmkit_rws"
# Fine-tuned weights lie near those that they come from (cosines of .98 and more); unrelated ones at 0.
LEAST_COSINE = 0.5


@dataclass(frozen=True)
class SignatureMetadata:
    """Where a signature comes from.

    Attributes:
        corruption: what θ_c was trained on, in words.
        severity: of the corruption; None where it has none.
        layers: what was selected.
        projected: whether (2) was applied; else it is the plain difference d - a.
        architecture: hash of names and shapes of the network's tensors but for its head.
        head: name of the head.
        base: fingerprint of θ_0 in S.
        standard: fingerprint of θ_s in S.
        norms: tensors of batch norms that came with `bn="signature"`.
    """

    corruption: str = ""
    severity: int | None = None
    layers: str | tuple[str, ...] = ""
    projected: bool = True
    architecture: str = ""
    head: str = ""
    base: str = ""
    standard: str = ""
    norms: tuple[str, ...] = ()


@dataclass(frozen=True)
class RobustWeightSignature:
    """What makes a network robust: a tensor for each of some parameters. Nothing here changes in place.

    Attributes:
        tensors: float32 tensors or codes, by the parameter's name.
        metadata: where they come from.
        strength: a factor of all tensors.
    """

    tensors: Mapping[str, Tensor | Codes]
    metadata: SignatureMetadata
    strength: float = 1.0

    @classmethod
    def extract(
        cls,
        base: nn.Module | Mapping[str, Tensor],
        standard: nn.Module,
        robust: nn.Module | Mapping[str, Tensor],
        layers: Layers = "conv:5",
        *,
        project: bool = True,
        bn: str = "keep",
        head: bool = False,
        inputs: Any = None,
        corruption: str = "",
        severity: int | None = None,
    ) -> RobustWeightSignature:
        """The signature of equations (1) and (2), computed in float32, the dot products in float64.

        Args:
            base: θ_0, a network or its state dict. Its head may have other classes.
            standard: θ_s.
            robust: θ_c.
            layers: S, as for `rws.layers.select`.
            project: (2); without it the plain difference θ_c - θ_s.
            bn: "keep": nothing of batch norms beyond what `layers` selects; "signature": the plain
                differences of all their affine parameters and running statistics too. They are not
                projected: a patch of weight w then has (1 - w) old + w new statistics.
            head: whether `layers` may select the head.
            inputs: what the network is given for, so that "conv:K" counts in the order of calls.
            corruption: what `robust` was trained on.
            severity: of the corruption.

        Raises:
            ValueError: as `select`; tensors that are missing or of another shape (all are listed), NaN or
                infinite values, an unknown `bn`.

        Warns:
            UserWarning: θ_s or θ_c that does not look fine-tuned from θ_0.
        """
        if bn not in ("keep", "signature"):
            raise ValueError(f"bn is 'keep' or 'signature', not {bn!r}.")
        names = select(standard, layers, inputs=inputs, head=head)
        norms = norm_tensors(standard) if bn == "signature" else []
        wanted = [*names, *(name for name in norms if name not in names)]
        states = {"base": base, "standard": standard, "robust": robust}
        theta0, theta_s, theta_c = _matching(states, wanted)
        for what, theta in (("standard", theta_s), ("robust", theta_c)):
            if (cosine := _cosine(theta0, theta, names)) < LEAST_COSINE:
                warnings.warn(
                    f"The {what} weights have cosine {cosine:.2f} to the base's: they do not look fine-tuned "
                    "from it, and a signature of such weights breaks networks.",
                    stacklevel=2,
                )
        tensors: dict[str, Tensor | Codes] = {}
        for name in wanted:
            if project and name not in norms:
                tensors[name] = _projected(theta_s[name] - theta0[name], theta_c[name] - theta0[name])
            else:
                tensors[name] = theta_c[name] - theta_s[name]
        last = head_of(standard, inputs)
        return cls(
            tensors,
            SignatureMetadata(
                corruption=corruption,
                severity=severity,
                layers=layers if isinstance(layers, str) else tuple(layers),
                projected=project,
                architecture=architecture(standard, last),
                head=last,
                base=fingerprint(theta0),
                standard=fingerprint(theta_s),
                norms=tuple(norms),
            ),
        )

    def tensor(self, name: str) -> Tensor:
        """One tensor with the strength applied, float32."""
        value = self.tensors[name]
        value = value.dequantize() if isinstance(value, Codes) else value
        return value * self.strength

    def quantize(self, levels: int = 16, scheme: str = "linear") -> RobustWeightSignature:
        """In `levels` levels for each tensor, by `rws.quantizing`.

        Raises:
            ValueError: an unknown scheme, levels out of range, or a signature that is quantised already.
        """
        quantizing.check(levels, scheme)
        plain = {name: value for name, value in self.tensors.items() if isinstance(value, Tensor)}
        if len(plain) < len(self.tensors):
            raise ValueError("This signature is quantised already; quantise the one that was extracted.")
        return replace(self, tensors={n: quantize(value, levels, scheme) for n, value in plain.items()})

    def scale(self, factor: float) -> RobustWeightSignature:
        """`factor` times as strong; exact for codes too.

        Raises:
            ValueError: a factor that is not finite.
        """
        if not math.isfinite(factor):
            raise ValueError(f"A factor is a finite number, not {factor}.")
        return replace(self, strength=self.strength * factor)

    def norm(self) -> float:
        """The Euclidean norm over all tensors."""
        return math.sqrt(_dot(self, self))

    def cosine(self, other: RobustWeightSignature) -> float:
        """The cosine between two signatures of the same tensors; 0 where one of them is zero.

        Raises:
            ValueError: other tensors.
        """
        if self.tensors.keys() != other.tensors.keys():
            different = sorted(self.tensors.keys() ^ other.tensors.keys())
            raise ValueError(f"Signatures of other tensors do not compare: {', '.join(different)}.")
        norms = self.norm() * other.norm()
        return _dot(self, other) / norms if norms else 0.0

    @property
    def nbytes(self) -> int:
        """Bytes of values or codes, without a file's header."""
        return sum(value.nbytes for value in self.tensors.values())

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Writes `signature.safetensors` into a folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        codes = {
            name: {k: v for k, v in vars(value).items() if k != "packed"}
            for name, value in self.tensors.items()
            if isinstance(value, Codes)
        }
        header = {"format": FORMAT, "strength": self.strength, **asdict(self.metadata), "codes": codes}
        values = {n: v.packed if isinstance(v, Codes) else v for n, v in self.tensors.items()}
        values = {name: value.detach().cpu().contiguous() for name, value in values.items()}
        with atomic_file(folder / FILE) as draft:
            save_file(values, str(draft), metadata={HEADER_KEY: json.dumps(header)})

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike) -> RobustWeightSignature:
        """Reads what `save_pretrained` wrote.

        Args:
            path: the folder, or the file.

        Raises:
            FileFormatError: missing, truncated, no signature, of another version, or inconsistent.
        """
        path = Path(path)
        path = path / FILE if path.is_dir() else path
        try:
            with safe_open(path, framework="pt") as file:
                text = (file.metadata() or {}).get(HEADER_KEY)
                values = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise FileFormatError(
                f"{path} is missing, truncated or not a safetensors file: {error}"
            ) from error
        if text is None:
            raise FileFormatError(f"{path} is no robust weight signature: its header lacks {HEADER_KEY}.")
        try:
            header = json.loads(text)
            if header["format"] != FORMAT:
                raise FileFormatError(
                    f"{path} has format {header['format']} of signatures; this version reads {FORMAT}."
                )
            if not math.isfinite(header["strength"]):
                raise ValueError(f"strength is {header['strength']}")
            known = {f.name for f in fields(SignatureMetadata)}
            about: dict[str, Any] = {
                k: tuple(v) if isinstance(v, list) else v for k, v in header.items() if k in known
            }
            return cls(
                {name: _read(value, header["codes"].get(name), name) for name, value in values.items()},
                SignatureMetadata(**about),
                float(header["strength"]),
            )
        except FileFormatError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FileFormatError(f"{path} has an unreadable header or tensor: {error!r}") from error


def _read(value: Tensor, code: dict[str, Any] | None, name: str) -> Tensor | Codes:
    if code is None:
        if value.dtype != torch.float32 or not value.isfinite().all():
            raise ValueError(f"{name} should hold finite float32 values")
        return value
    result = Codes(value, **{**code, "shape": tuple(code["shape"])})
    quantizing.check(result.levels, result.scheme)
    size = packed_size(math.prod(result.shape), bits_of(result.levels))
    if value.dtype != torch.uint8 or tuple(value.shape) != (size,):
        raise ValueError(f"{name} should hold {size} bytes of codes")
    if not math.isfinite(result.low) or not math.isfinite(result.high):
        raise ValueError(f"{name} has no finite bounds")
    return result


def state_of(model: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The live tensors of a network, or a state dict as it is."""
    return dict(model.state_dict(keep_vars=True) if isinstance(model, nn.Module) else model)


def _matching(states: Mapping[str, Any], names: Sequence[str]) -> list[dict[str, Tensor]]:
    """These tensors of three networks, in float32 and on the CPU, after all have been compared."""
    found = {what: state_of(state) for what, state in states.items()}
    shapes = {name: tuple(found["standard"][name].shape) for name in names}
    wrong = []
    for what, state in found.items():
        for name in names:
            if name not in state:
                wrong.append(f"{name} is missing in {what}")
            elif (shape := tuple(state[name].shape)) != shapes[name]:
                wrong.append(f"{name} is {shape} in {what}, {shapes[name]} in standard")
            elif not state[name].isfinite().all():
                wrong.append(f"{name} holds NaN or infinite values in {what}")
    if wrong:
        raise ValueError(f"These networks have no common signature: {'; '.join(wrong)}.")
    return [{name: state[name].detach().float().cpu() for name in names} for state in found.values()]


def _projected(a: Tensor, d: Tensor) -> Tensor:
    """(2); d itself where a is zero, as for a frozen layer."""
    a, d = a.double(), d.double()
    square = (a * a).sum()
    return (d - (a * d).sum() / square * a if square > 0 else d).float()


def _dot(one: RobustWeightSignature, two: RobustWeightSignature) -> float:
    return float(sum((one.tensor(n).double() * two.tensor(n).double()).sum() for n in one.tensors))


def _cosine(one: Mapping[str, Tensor], two: Mapping[str, Tensor], names: Sequence[str]) -> float:
    a, b = (torch.cat([state[name].double().flatten() for name in names]) for state in (one, two))
    norms = a.norm() * b.norm()
    return float(a @ b / norms) if norms > 0 else 1.0
