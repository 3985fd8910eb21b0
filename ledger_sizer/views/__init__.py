"""Read models of a ledger. Reads use their own connections and never wait for the writer.

queries: exposure, positions, decisions
scopes: the scopes of an exposure, with the caps that count, and its pools
position_listing: a page of positions by state
paging: the limit, the cursor and the page of every listing
overview_query: the overview that the dashboard and `ledger-sizer top` show
exposure_series: exposure over time, for charts
watermarks: how far each portfolio has got, for watchers
"""
