"""One process of two that train: the command line again and again, so that it is imported once."""

import json
import sys

from cmdvid.__main__ import main

for args in json.loads(sys.argv[1]):
    main(args)
