"""The dashboard's pages: an `Overview` in, HTML out. No route, no cookie, no database: `api.pages` serves them.

    figures    money, times and tags as a desk reads them
    words      a decision in one line of words
    chart      the line of exposure as SVG paths
    questions  what is asked before something is done
    pages      the pages themselves, from `templates/`
    files      the style sheet, the script and the icon, by names that change with their content

`ledger-sizer top` shows the same figures and words in a terminal.
"""
