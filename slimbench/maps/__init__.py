"""Pictures of which patches of a slide were kept, and how far. `slimbench maps OUT --slide ID`"""
