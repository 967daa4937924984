"""``python -m waybill``: the command ``waybill`` in this very Python."""

import sys

from waybill.console.main import main

sys.exit(main())
