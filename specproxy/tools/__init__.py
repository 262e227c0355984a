"""Tool calls: how model families write them, and what the OpenAI API makes of them.

* ``formats``: the families, told apart by a chat template, and their forms as data.
* ``request``: ``tools``, ``tool_choice`` and the older ``functions`` of a body, checked, as one value.
* ``history``: messages that call tools or answer calls, as templates want them.
* ``grammar``: the text that constrains an answer to what was asked for.
* ``parser``: an answer's text in pieces to events (``events``); ``calls`` reads the calls, ``reasoning`` the thoughts.
* ``shapes``: the API's objects, made from events.

Pure values and functions: no model library, no server.
"""
