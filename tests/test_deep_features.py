"""Deep features of the UNet are reused between sampling steps: exact where none is, near where some are."""

from dataclasses import replace

import pytest
import torch

from ldm.diffusion.sampling import Sampling
from ldm.errors import UserError
from ldm.models.deep_features import reused_deep_features
from ldm.models.latent_diffusion import LatentDiffusion
from tests.conftest import PROJECT

PLAIN = Sampling("ddim", 6, 3.0)


@pytest.fixture(scope="module")
def model() -> LatentDiffusion:
    return LatentDiffusion.from_base(PROJECT / "assets" / "base").eval()


def drawn(model: LatentDiffusion, sampling: Sampling) -> torch.Tensor:
    return model.images(["a photo of a dog"], [3], sampling, 32, 32)


def test_reuse_in_no_pass_is_exact_and_more_reuse_is_farther_away(model):
    own = [block.forward for block in model.unet.up_blocks]
    plain = drawn(model, PLAIN)
    assert torch.equal(drawn(model, replace(PLAIN, deepcache=1)), plain)
    twice, always = (drawn(model, replace(PLAIN, deepcache=every)) for every in (2, 6))
    assert 0 < (twice - plain).abs().mean() < (always - plain).abs().mean()
    assert torch.equal(drawn(model, PLAIN), plain)  # nothing is left in the UNet
    assert [block.forward for block in model.unet.up_blocks] == own


def test_a_reusing_pass_is_the_outer_blocks_around_the_kept_features(model):
    """Against the blocks called one by one."""
    unet, rows = model.unet, 2
    states = model.embed(["a dog", "a cat"]).states
    first, second = torch.randn(
        2, rows, *model.latent_shape(32, 32), generator=torch.Generator().manual_seed(0)
    )
    inputs = []
    hook = unet.up_blocks[-1].register_forward_pre_hook(
        lambda block, args, kwargs: inputs.append(kwargs["hidden_states"]), with_kwargs=True
    )
    times = torch.tensor([500] * rows), torch.tensor([400] * rows)
    with torch.no_grad(), reused_deep_features(unet, 2):
        unet(first, times[0], states)
        found = unet(second, times[1], states).sample
    hook.remove()
    assert inputs[1] is inputs[0]
    with torch.no_grad():
        time = unet.time_embedding(unet.time_proj(times[1]).to(second.dtype))
        x = unet.conv_in(second)

        def through(block, x, **more):
            attends = {"encoder_hidden_states": states} if hasattr(block, "attentions") else {}
            return block(hidden_states=x, temb=time, **attends, **more)

        outer = (x, *through(unet.down_blocks[0], x)[1])
        last = unet.up_blocks[-1]
        x = through(last, inputs[0], res_hidden_states_tuple=outer[: len(last.resnets)])
        wanted = unet.conv_out(unet.conv_act(unet.conv_norm_out(x)))
    torch.testing.assert_close(found, wanted)


def test_where_guidance_ends_the_features_are_computed_anew(model):
    """Two rows a picture become one."""
    sampling = replace(PLAIN, deepcache=6, guidance_interval=(400, 1000))
    assert drawn(model, sampling).isfinite().all()


def test_what_has_no_deep_features_is_refused(model):
    with pytest.raises(UserError, match="at least 1"):
        replace(PLAIN, deepcache=0)
    single = type(model.unet)(
        sample_size=8, down_block_types=["DownBlock2D"], up_block_types=["UpBlock2D"], block_out_channels=[32],
        layers_per_block=1, mid_block_type=None,
    )  # fmt: skip
    with pytest.raises(UserError, match="single level"), reused_deep_features(single, 2):
        pass
