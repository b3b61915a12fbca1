"""How is a study run? Its parameters, its notebooks in order, and the command `dmsmil`."""
