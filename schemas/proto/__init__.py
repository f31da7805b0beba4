"""The protobuf messages: the .proto files, and the modules that protoc makes of them."""
