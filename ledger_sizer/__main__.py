"""`python -m ledger_sizer` is `ledger-sizer`."""

from ledger_sizer.cli import main

if __name__ == "__main__":
    main()
