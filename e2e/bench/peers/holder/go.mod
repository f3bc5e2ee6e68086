module portmapping.test/holder

go 1.26.0
