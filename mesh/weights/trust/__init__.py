"""What is believed and why: keys, manifests, licences and their acceptance, revocations, the catalog."""
