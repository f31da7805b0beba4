// A Go client of the gRPC front, for its tests: it learns the messages by reflection, does what it is asked to, and
// prints what happened as one JSON object.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	_ "google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	reflection "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
)

const score = "/paywarden.scoring.v1.Scoring/Score"

func main() {
	mode, target := os.Args[1], os.Args[2]
	connection, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	check(err)
	defer connection.Close()
	client := &client{connection: connection}
	found := map[string]any{}
	client.learn(found)
	switch mode {
	case "features":
		client.features(found)
	case "steady":
		client.steady(found, 3*time.Second)
	}
	check(json.NewEncoder(os.Stdout).Encode(found))
}

type client struct {
	connection        *grpc.ClientConn
	request, response protoreflect.MessageDescriptor
}

// learn asks the server what it can do, as grpcurl does.
func (c *client) learn(found map[string]any) {
	stream, err := reflection.NewServerReflectionClient(c.connection).ServerReflectionInfo(context.Background())
	check(err)
	ask := func(request *reflection.ServerReflectionRequest) *reflection.ServerReflectionResponse {
		check(stream.Send(request))
		answer, err := stream.Recv()
		check(err)
		return answer
	}
	services := []string{}
	listed := ask(&reflection.ServerReflectionRequest{
		MessageRequest: &reflection.ServerReflectionRequest_ListServices{},
	})
	for _, service := range listed.GetListServicesResponse().Service {
		services = append(services, service.Name)
	}
	found["services"] = services
	answer := ask(&reflection.ServerReflectionRequest{
		MessageRequest: &reflection.ServerReflectionRequest_FileContainingSymbol{
			FileContainingSymbol: "paywarden.scoring.v1.Scoring",
		},
	})
	check(stream.CloseSend())
	file := &descriptorpb.FileDescriptorProto{}
	check(proto.Unmarshal(answer.GetFileDescriptorResponse().FileDescriptorProto[0], file))
	descriptor, err := protodesc.NewFile(file, nil)
	check(err)
	method := descriptor.Services().ByName("Scoring").Methods().ByName("Score")
	c.request, c.response = method.Input(), method.Output()
}

func (c *client) features(found map[string]any) {
	health, err := grpc_health_v1.NewHealthClient(c.connection).Check(
		context.Background(), &grpc_health_v1.HealthCheckRequest{})
	check(err)
	found["health"] = health.Status.String()
	found["score"] = c.call(context.Background(), "go", 1, nil)
	found["gzip"] = c.call(context.Background(), "go-gzip", 1, nil, grpc.UseCompressor("gzip"))
	trailer := metadata.MD{}
	found["wrong"] = c.call(context.Background(), "go-wrong", -1, &trailer)
	found["field"] = trailer.Get("paywarden-field")
	late, cancel := context.WithTimeout(context.Background(), time.Nanosecond)
	defer cancel()
	found["late"] = c.call(late, "go-late", 1, nil)
	withMetadata := metadata.AppendToOutgoingContext(context.Background(), "x-request-id", "7", "trace-bin", "\x00\xff")
	found["metadata"] = c.call(withMetadata, "go-metadata", 1, nil)
	found["unknown"] = status.Code(c.connection.Invoke(
		context.Background(), "/paywarden.scoring.v1.Scoring/Other",
		dynamicpb.NewMessage(c.request), dynamicpb.NewMessage(c.response))).String()
	var ok atomic.Int64
	c.inParallel(50, func(worker int) {
		for number := range 100 {
			name := fmt.Sprintf("go-%d-%d", worker, number)
			if c.call(context.Background(), name, 1, nil) == "OK "+name {
				ok.Add(1)
			}
		}
	})
	found["parallel_ok"] = ok.Load()
}

// steady calls without pause, and counts what fails.
func (c *client) steady(found map[string]any, duration time.Duration) {
	var ok, failed atomic.Int64
	until := time.Now().Add(duration)
	c.inParallel(8, func(worker int) {
		for number := 0; time.Now().Before(until); number++ {
			name := fmt.Sprintf("go-%d-%d", worker, number)
			if outcome := c.call(context.Background(), name, 1, nil); outcome == "OK "+name {
				ok.Add(1)
			} else {
				failed.Add(1)
				fmt.Fprintln(os.Stderr, outcome)
			}
		}
	})
	found["ok"], found["failed"] = ok.Load(), failed.Load()
}

func (c *client) inParallel(workers int, work func(int)) {
	var group sync.WaitGroup
	for worker := range workers {
		group.Add(1)
		go func() {
			defer group.Done()
			work(worker)
		}()
	}
	group.Wait()
}

// call scores a payment; "OK" and the id that came back, or the status and its message.
func (c *client) call(
	ctx context.Context, id string, amount int64, trailer *metadata.MD, options ...grpc.CallOption,
) string {
	request, response := dynamicpb.NewMessage(c.request), dynamicpb.NewMessage(c.response)
	fields := c.request.Fields()
	text := func(name protoreflect.Name, value string) {
		request.Set(fields.ByName(name), protoreflect.ValueOfString(value))
	}
	text("payment_id", id)
	text("card_id", "card")
	text("merchant_id", "merchant")
	text("currency", "EUR")
	request.Set(fields.ByName("event_time_ms"), protoreflect.ValueOfInt64(1_700_000_000_000))
	request.Set(fields.ByName("amount_minor"), protoreflect.ValueOfInt64(amount))
	if trailer != nil {
		options = append(options, grpc.Trailer(trailer))
	}
	if err := c.connection.Invoke(ctx, score, request, response, options...); err != nil {
		return status.Code(err).String() + " " + status.Convert(err).Message()
	}
	return "OK " + response.Get(c.response.Fields().ByName("payment_id")).String()
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
