"""Renders an `Overview`: as the dashboard's HTML pages and as a terminal's screen. Reads no database.

formatting       money, times and tags as text
labels           a decision in one line
chart            exposure over time as SVG paths
confirm_forms    the forms that confirm an action
pages            the pages, from `templates/`; their routes and sessions are in `api`
assets           the style sheet, the script and the icon, by names that change with their content
overview_screen  the screen of `ledger-sizer top` and of the demo, in the same figures and words
"""
