"""What the tests of deploy/ share: schemas of Kubernetes, the pod security standards, manifests."""
