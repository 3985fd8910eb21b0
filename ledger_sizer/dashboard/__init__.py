"""The dashboard's pages: renders an `Overview` as HTML. Routes and sessions are in `api`; pages read no database.

    formatting     money, times and tags as text
    labels         a decision in one line
    chart          exposure over time as SVG paths
    confirm_forms  the forms that confirm an action
    pages          the pages, from `templates/`
    assets         the style sheet, the script and the icon, by names that change with their content

`ledger-sizer top` shows the same figures and labels in a terminal.
"""
