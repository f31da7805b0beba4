module paywarden

go 1.23
