"""The scenarios, one module per kind of fault. Importing a module registers its scenarios and injectors."""
