from ashnets.cli import main
from ashnets.cli.common import leave

try:
    code = main()
except SystemExit as end:  # of tyro, or of a rank that leaves it to the first to say why
    code = end.code
leave(code)
