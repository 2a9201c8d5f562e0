"""What came of one claim: that a group may be scaled, unit by unit."""

import dataclasses

import numpy as np

from bnrate import groups as gr

INVARIANT, NO_EFFECT, REST, NOT_KNOWN = gr.INVARIANT, "no effect", gr.REST, "not known"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """How one claim stood the numbers.

    Attributes:
      group: the claim: these leaves may be scaled together, each unit alone.
      kind: "rest": refuted; "invariant": the numbers agree; "no effect": nothing that was tried
        changes the loss; "not known": nothing speaks against it, but there was nothing to see.
      units: how many units the group has.
      silent: how many of them have no gradient at any point, so that nothing was learnt of them.
      euler: the largest |<w, grad>| / sum |w * grad| over points and units, beyond rounding; NaN
        if all units are silent.
      scaling: the largest |L(c w) - L(w)| over points and factors, beyond rounding, relative to
        that at random points as far from w; NaN if not tried, because Euler's identity had failed
        already, or if nothing changes the loss, or if the loss is not finite at c w.
      figure: of what is refuted, what refutes it: "the loss moves by 12 % when it is doubled".
    """

    group: gr.Group
    kind: str
    units: int
    silent: int
    euler: float
    scaling: float
    figure: str = ""

    @property
    def passes(self) -> bool:
        """Whether nothing speaks against the claim."""
        return self.kind != REST

    @property
    def residuals(self) -> tuple[str, str]:
        """Euler's and that of scaling as text, empty where there is none."""
        euler, scaling = ("" if np.isnan(r) else f"{r:.1e}" for r in (self.euler, self.scaling))
        return euler, scaling


def axes_text(group: gr.Group) -> str:
    """The unit axes of each member that has other ones than the first: "1", "(0, 2)", "1, 0"."""
    axes = dict.fromkeys(m.axes for m in group.members)
    return ", ".join(str(a[0]) if len(a) == 1 else str(a) for a in axes if a)


def units_text(group: gr.Group) -> str:
    """What is scaled alone, in words."""
    axes = axes_text(group)
    return f"each index of {'axis' if axes.isdigit() else 'axes'} {axes}" if axes else "as a whole"
