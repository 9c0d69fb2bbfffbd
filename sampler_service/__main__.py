"""`python -m sampler_service` is `sampler-service`."""

from sampler_service.cli import main

main()
