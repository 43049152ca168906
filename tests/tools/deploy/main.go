// Command deploycheck reads what deploy/ has for containers with the code that would run it: BuildKit's Dockerfile
// front end and its linter, Docker Compose's loader, and kustomize, whose rendering it prints.
//
// It needs no daemon, and asks no registry: a base image is taken for one without a configuration of its own.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/frontend/dockerfile/dockerfile2llb"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/opencontainers/go-digest"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: deploycheck DIRECTORY")
		os.Exit(2)
	}
	if err := check(context.Background(), os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func check(ctx context.Context, directory string) error {
	rendered, err := render(filepath.Join(directory, "kubernetes"))
	if err == nil {
		_, err = os.Stdout.Write(rendered)
	}
	return errors.Join(
		checkDockerfile(ctx, filepath.Join(directory, "Dockerfile")),
		checkCompose(ctx, filepath.Join(directory, "compose.yaml")),
		err,
	)
}

// checkDockerfile turns a Dockerfile into build steps; what the linter warns of counts as wrong.
func checkDockerfile(ctx context.Context, path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var problems []error
	warn := func(rule, _, _, message string, ranges []parser.Range) {
		problems = append(problems, fmt.Errorf("%s:%d: %s: %s", path, ranges[0].Start.Line, rule, message))
	}
	options := dockerfile2llb.ConvertOpt{MetaResolver: unknownImages{}, Warn: warn, AllStages: true}
	result, err := dockerfile2llb.Dockerfile2LLB(ctx, text, options)
	if err == nil {
		_, err = result.State.Marshal(ctx)
	}
	return errors.Join(append(problems, err)...)
}

type unknownImages struct{}

func (unknownImages) ResolveImageConfig(
	_ context.Context, ref string, _ sourceresolver.Opt,
) (string, digest.Digest, []byte, error) {
	return ref, "", []byte("{}"), nil
}

var _ llb.ImageMetaResolver = unknownImages{}

// checkCompose loads a file as `docker compose` does: its schema, and that what it names is there.
func checkCompose(ctx context.Context, path string) error {
	options, err := cli.NewProjectOptions([]string{path}, cli.WithConsistency(true), cli.WithNormalization(true))
	if err != nil {
		return err
	}
	_, err = options.LoadProject(ctx)
	return err
}

func render(directory string) ([]byte, error) {
	kustomizer := krusty.MakeKustomizer(krusty.MakeDefaultOptions())
	resources, err := kustomizer.Run(filesys.MakeFsOnDisk(), directory)
	if err != nil {
		return nil, err
	}
	return resources.AsYaml()
}
