"""What Lightning's TensorBoard logger leaves out: descriptions of curves, and hyperparameters with final metrics."""

from collections.abc import Mapping

from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from torch.utils.tensorboard.summary import hparams

from ldm.training.curves import curve_of

SECTIONS = ("seed", "model.", "data.", "lightning.trainer.")
"""Of the config: what the tab of hyperparameters shows. Callbacks and loggers watch."""


def describe(logger: TensorBoardLogger, name: str, value: float, step: int) -> None:
    """Log a number with its title and description; TensorBoard keeps those of a curve's first number."""
    curve = curve_of(name)
    metadata = SummaryMetadata(
        display_name=curve.title,
        summary_description=curve.description,
        plugin_data=SummaryMetadata.PluginData(plugin_name="scalars"),
    )
    entry = Summary.Value(tag=name, simple_value=value, metadata=metadata)
    logger.experiment._get_file_writer().add_summary(Summary(value=[entry]), step)


def begin_hyperparameters(
    logger: TensorBoardLogger, settings: Mapping[str, object], metrics: list[str]
) -> None:
    """Fill the tab of hyperparameters: `settings` by their paths, and the names of the curves whose ends count."""
    shown = {
        key: value if isinstance(value, bool | int | float | str) else str(value)
        for key, value in settings.items()
        if key.startswith(SECTIONS) and value is not None
    }
    writer = logger.experiment._get_file_writer()
    for summary in hparams(shown, dict.fromkeys(metrics, 0.0))[:2]:
        writer.add_summary(summary)


def end_hyperparameters(logger: TensorBoardLogger) -> None:
    """Mark the run as ended in that tab."""
    logger.experiment._get_file_writer().add_summary(hparams({}, {})[2])
    logger.experiment.flush()
