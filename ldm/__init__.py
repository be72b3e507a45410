import logging

# diffusers imports bitsandbytes where it is installed, and that misses, on a CPU, a kernel that nothing here uses.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
