"""The edge towards the cluster, and the only home of ray."""
