"""One run from names: policy, setting, what it knows of lengths."""

from slo_opt.domain.instance import Instance
from slo_opt.policies.catalogue import Setting
from slo_opt.policies.lengths import make_lengths
from slo_opt.policies.registry import PolicyContext, make_policy, prepare
from slo_opt.simulate.run import Run
from slo_opt.simulate.simulator import SimulationOptions, simulate


def play(
    instance: Instance,
    policy: str,
    setting: Setting | None = None,
    lengths: str = "quantile",
    options: SimulationOptions | None = None,
) -> Run:
    """Serve an instance with a fresh policy.

    Parameters
    ----------
    instance : Instance
        One replica.
    policy : str
        Name in `POLICIES`.
    setting : mapping or None
        Instead of the policy's default setting, key by key.
    lengths : str
        Name in `LENGTHS`.
    options : SimulationOptions or None
        Seed, noise, model error, acceptance.

    Raises
    ------
    InvalidInputError
        An unknown name, or a setting that the policy does not have.
    IllegalAllocationError
        The policy asked for what the engine cannot do.
    """
    prepare([policy])
    context = PolicyContext(instance.engine, instance.slo_classes, make_lengths(lengths, instance))
    return simulate(instance, make_policy(policy, context, setting), options)
