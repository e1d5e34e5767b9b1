import shared  # noqa: F401  # mends an import of torchvision before Lightning tries it
