"""Reads exchange accounts through ccxt: balances, positions and market rules, in base units and exact decimals.

accounts            one account: its snapshot and the market rules of its venue
positions           its positions, row by row and family by family
position_calls      the calls that list every family of positions, by exchange
balances            its balances, every wallet, with what the markets say of them
earn_names          names of lent and staked coins, and the coins they stand for
spot_prices         prices of the held coins, from tickers
activity            what happened there in one market or asset: fills, liquidations, transfers, funding
wallets             the names of each exchange's wallets, and their balances, read whole
requirements        what an exchange asks of an account's settings, checked at the start
response_rows       whether a response holds its rows, and amounts that were read
numbers_read        numbers in ccxt's answers -> exact decimals
client              the ccxt client of one account, with every response checked
snapshot            the types of what an account shows at one moment
market_rules        ccxt's description of a market -> `MarketRules`
instrument_cache    the market rules in the database, with history
instrument_names    looks up the names of markets in reservations
instrument_refresh  loads the rules of a venue into the database, by hand or on schedule
known_markets       the rules of a few markets as a table, for the replay and the demo
"""
