"""A page to hear a LLaSO model in the browser, on this machine or as a Space of the Hub.

`answers` asks the model, `pictures` draws what it hears, `menu` holds tasks and examples, `page` lays them out,
`space` writes a folder for the Hub. All else travels into the Space, so it looks at no other room.
"""
