"""A web page for a LLaSO model, on this machine or as a Space of the Hub.

`question` asks the model, `pictures` draws its input, `menu` holds tasks and examples, `page` is the page itself.
`menu_builder` and `space` write the folder of a Space; the other modules are copied into it, so they import no other
package of ours but `llaso_common`.
"""
