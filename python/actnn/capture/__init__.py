"""The front end: what TorchDynamo captures of a model, lowered to programs and functions of the library."""
