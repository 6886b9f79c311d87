import sys

from ashnets.cli import main

sys.exit(main())
