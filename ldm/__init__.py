import logging
import os

# OpenMP's threads would wait for each other by spinning. Beside other work on the same cores that takes the time of the
# thread that is waited for: a step becomes many times slower (docs/performance.md). Read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# diffusers imports bitsandbytes if installed, which on a CPU complains about a missing kernel that nothing here uses.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
