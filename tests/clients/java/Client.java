import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientInterceptor;
import io.grpc.ClientInterceptors;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.StatusRuntimeException;
import io.grpc.stub.ClientCalls;
import io.grpc.stub.MetadataUtils;
import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.UncheckedIOException;
import java.util.ArrayList;
import java.util.HexFormat;
import java.util.List;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;

/** A Java client of the gRPC front, for its tests. Messages come and go as hex; a line for each thing it did. */
public final class Client {
  private static final class Bytes implements MethodDescriptor.Marshaller<byte[]> {
    @Override
    public InputStream stream(byte[] value) {
      return new ByteArrayInputStream(value);
    }

    @Override
    public byte[] parse(InputStream stream) {
      try {
        return stream.readAllBytes();
      } catch (IOException error) {
        throw new UncheckedIOException(error);
      }
    }
  }

  private static MethodDescriptor<byte[], byte[]> method(String name) {
    return MethodDescriptor.<byte[], byte[]>newBuilder()
        .setType(MethodDescriptor.MethodType.UNARY)
        .setFullMethodName(name)
        .setRequestMarshaller(new Bytes())
        .setResponseMarshaller(new Bytes())
        .build();
  }

  private static final MethodDescriptor<byte[], byte[]> SCORE = method("paywarden.scoring.v1.Scoring/Score");
  private static final MethodDescriptor<byte[], byte[]> HEALTH = method("grpc.health.v1.Health/Check");
  private static final Metadata.Key<String> FIELD =
      Metadata.Key.of("paywarden-field", Metadata.ASCII_STRING_MARSHALLER);

  public static void main(String[] arguments) throws Exception {
    byte[] right = HexFormat.of().parseHex(arguments[1]);
    byte[] wrong = HexFormat.of().parseHex(arguments[2]);
    ManagedChannel channel = Grpc.newChannelBuilder(arguments[0], InsecureChannelCredentials.create()).build();
    try {
      CallOptions plain = CallOptions.DEFAULT;
      tell("score", channel, SCORE, plain, right);
      tell("gzip", channel, SCORE, plain.withCompression("gzip"), right);
      tell("deadline kept", channel, SCORE, plain.withDeadlineAfter(10, TimeUnit.SECONDS), right);
      tell("late", channel, SCORE, plain.withDeadlineAfter(1, TimeUnit.NANOSECONDS), right);
      tell("wrong", channel, SCORE, plain, wrong);
      tell("health", channel, HEALTH, plain, new byte[0]);
      tell("unknown", channel, method("paywarden.scoring.v1.Scoring/Other"), plain, right);
      Metadata metadata = new Metadata();
      metadata.put(Metadata.Key.of("x-request-id", Metadata.ASCII_STRING_MARSHALLER), "7");
      metadata.put(Metadata.Key.of("trace-bin", Metadata.BINARY_BYTE_MARSHALLER), new byte[] {0, -1});
      ClientInterceptor attach = MetadataUtils.newAttachHeadersInterceptor(metadata);
      tell("metadata", ClientInterceptors.intercept(channel, attach), SCORE, plain, right);
      System.out.println("parallel\t" + inParallel(channel, right));
    } finally {
      channel.shutdown().awaitTermination(5, TimeUnit.SECONDS);
    }
  }

  private static void tell(
      String what, Channel channel, MethodDescriptor<byte[], byte[]> method, CallOptions options, byte[] message) {
    String outcome;
    try {
      byte[] answer = ClientCalls.blockingUnaryCall(channel, method, options, message);
      outcome = "OK\t" + HexFormat.of().formatHex(answer);
    } catch (StatusRuntimeException error) {
      String field = error.getTrailers() == null ? null : error.getTrailers().get(FIELD);
      outcome = error.getStatus().getCode() + "\t" + field;
    }
    System.out.println(what + "\t" + outcome);
  }

  private static int inParallel(Channel channel, byte[] message) throws Exception {
    int answered = 0;
    for (int round = 0; round < 10; round++) {
      List<Future<byte[]>> calls = new ArrayList<>();
      for (int number = 0; number < 200; number++) {
        calls.add(ClientCalls.futureUnaryCall(channel.newCall(SCORE, CallOptions.DEFAULT), message));
      }
      for (Future<byte[]> call : calls) {
        answered += call.get(10, TimeUnit.SECONDS).length > 0 ? 1 : 0;
      }
    }
    return answered;
  }
}
