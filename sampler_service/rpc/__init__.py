"""The edge towards trainers, and the only home of grpc on this side."""
