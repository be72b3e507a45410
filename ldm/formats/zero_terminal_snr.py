"""A noise schedule that ends in noise alone (Lin et al., arXiv 2305.08891, section 3.1), in diffusers' settings."""

import hashlib
from dataclasses import replace

from ldm.diffusion.sampling import ZERO_TERMINAL_SNR, respects_zero_terminal_snr
from ldm.errors import UserError
from ldm.formats.components import Components


def with_zero_terminal_snr(components: Components) -> Components:
    """The same networks on a rescaled schedule, sampled from its very end. Raises UserError where noise is predicted.

    Another schedule is another base: its prior samples differ, so its fingerprint does.
    """
    config = components.scheduler_config
    if config["prediction_type"] != "v_prediction":
        raise UserError(
            f"model.params.zero_terminal_snr needs a base that predicts the velocity, and {components.source} predicts"
            " the noise, which says nothing of the picture where all is noise"
        )
    if config.get(ZERO_TERMINAL_SNR):
        return components
    known = config.get("_class_name", "DDIMScheduler")
    changed = {
        "_class_name": known if respects_zero_terminal_snr(known) else "DDIMScheduler",
        ZERO_TERMINAL_SNR: True,
        "timestep_spacing": "trailing",  # table 2 there
    }
    identity = f"{components.fingerprint} {ZERO_TERMINAL_SNR}".encode()
    fingerprint = hashlib.blake2b(identity, digest_size=16).hexdigest()
    return replace(components, scheduler_config={**config, **changed}, fingerprint=fingerprint)
