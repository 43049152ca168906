"""`python -m kkp` is the `kkp` command."""

from kkp.cli import main

raise SystemExit(main())
