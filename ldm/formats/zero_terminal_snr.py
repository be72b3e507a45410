"""A noise schedule that ends in pure noise (Lin et al., arXiv 2305.08891, section 3.1), in diffusers' settings."""

import hashlib
from dataclasses import replace

from ldm.diffusion.sampling import ZERO_TERMINAL_SNR, respects_zero_terminal_snr
from ldm.errors import UserError
from ldm.formats.components import Components


def with_zero_terminal_snr(components: Components) -> Components:
    """The same networks with a rescaled schedule, sampled from its end. Raises UserError for epsilon prediction.

    Prior samples differ with another schedule, so the fingerprint does too.
    """
    config = components.scheduler_config
    if config["prediction_type"] != "v_prediction":
        raise UserError(
            f"model.params.zero_terminal_snr needs a base that predicts the velocity, but {components.source} predicts"
            " the noise, which says nothing about the picture at pure noise"
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
