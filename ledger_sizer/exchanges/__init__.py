"""Reads exchange accounts through ccxt: balances, positions and market rules, in base units and exact decimals.

accounts            one account: its snapshot and the market rules of its venue
client              the ccxt client of one account, with every response checked
snapshot            the types of what an account shows at one moment
market_rules        ccxt's description of a market -> `MarketRules`
instrument_cache    the market rules in the database, with history
instrument_names    looks up the names of markets in reservations
instrument_refresh  loads the rules of a venue into the database, by hand or on schedule
known_markets       the rules of a few markets as a table, for the replay and the demo
"""
